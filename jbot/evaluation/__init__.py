"""How good a frozen embedding is: probes, metrics, geometry, anomaly detection."""
