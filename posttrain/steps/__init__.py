"""Steps: fingerprints, manifests, drift, locks and processes. Knows no step of the paper."""
