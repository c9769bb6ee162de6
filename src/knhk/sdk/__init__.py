"""For programs that use KNHK: a client of the API, a builder of descriptors, the worker. `import knhk` offers them."""
