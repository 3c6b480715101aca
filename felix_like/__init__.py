"""What should be true on this node: the thinking part, named after Calico's Felix."""
