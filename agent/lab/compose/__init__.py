"""The lab of docker-compose.yml: three nodes in containers, a ToR router, and faults with known outcomes."""
