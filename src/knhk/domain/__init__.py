"""What KNHK is about, without any I/O: descriptors, plans, runs, events, receipts. Reads and writes nothing."""
