"""RFC 4271's words: Adj-RIB-In, decision process, Loc-RIB, Adj-RIB-Out. Pure and incremental per prefix."""
