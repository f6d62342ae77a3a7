"""What a key may use: rate and concurrency, counted in Redis for all gateways together."""
