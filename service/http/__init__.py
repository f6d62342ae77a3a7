"""The edge: reading requests, running pipelines for them, answering errors."""
