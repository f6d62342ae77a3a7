"""What the papers that generate by denoising share: samplers, autoencoders, text encoders."""
