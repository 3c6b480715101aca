"""`tortiectl`: reads the datastore and the agents' status; it computes nothing itself."""
