"""Training: a visible loop for each thing that can be trained."""
