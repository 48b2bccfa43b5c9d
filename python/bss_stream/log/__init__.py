"""The log: topics with partitions, keyed records and transactions, over two backends."""
