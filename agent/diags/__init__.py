"""`tortiectl node diags`: one archive with what a bug report needs, and no secret in it."""
