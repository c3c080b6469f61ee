"""Learning encoders from images without labels: contrastive learning, local features, decorrelation."""
