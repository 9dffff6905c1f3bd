"""Looking into the process: a recorded run, noise and schedules, the autoencoder, CLIP."""
