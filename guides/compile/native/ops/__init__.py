"""What each kind of operation becomes: one file per kind, from a node of the graph to loops."""
