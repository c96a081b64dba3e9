"""What is told about the whole system: questions to its servers, metrics, and the workers' HTTP port for them."""
