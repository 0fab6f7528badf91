"""What is trained: adapters on a frozen model of the host, and the files they begin at."""
