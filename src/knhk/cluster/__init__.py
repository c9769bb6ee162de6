"""Several nodes as one: who is there, and who owns which partition. etcd decides; nothing here writes the journal."""
