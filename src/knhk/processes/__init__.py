"""Several processes of one machine as one server: who owns which partition, and who sees to it that they live."""
