"""`tortie-controllers`: what one process does for the whole cluster."""
