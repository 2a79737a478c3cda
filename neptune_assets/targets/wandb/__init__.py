"""Load runs into Weights & Biases."""
