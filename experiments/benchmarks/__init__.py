"""Benchmarks: measurements that need a quiet machine, kept out of the tests."""
