"""Looking at a host from outside the agent: `tortiectl node checksystem` and `diags`. Changes nothing."""
