"""The load harness: it measures a KNHK server from outside, and checks afterwards that nothing was lost."""
