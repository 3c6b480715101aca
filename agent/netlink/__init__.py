"""rtnetlink(7): messages as octets, and sockets for them; shared by all who read or write the kernel."""
