"""What the fleet is told of a node, and how a broker is reached; the sink and `tortiectl` share it."""
