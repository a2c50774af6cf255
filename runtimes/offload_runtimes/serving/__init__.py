"""What a server needs around its sessions: fair workers, metrics, logs, a service's life."""
