"""Load runs into MLflow."""
