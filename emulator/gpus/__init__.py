"""GPUs: real ones by NVML, and those that a runner pretends to have."""
