"""The scene survive: a machine is pulled out in the middle of training, and the job goes on without it."""
