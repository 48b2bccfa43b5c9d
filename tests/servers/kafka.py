"""A real kafka server for tests, started as a process on a free loopback port."""
