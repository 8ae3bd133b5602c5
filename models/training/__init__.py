"""The network and its training: a configuration and an archive in, weights and curves out."""
