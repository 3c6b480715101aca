"""A whole cluster in network namespaces: what a newcomer tries and what the lab tests build."""
