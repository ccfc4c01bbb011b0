"""The ground floor: settings, command lines, logs, errors and lifecycle. It knows nothing of tomography."""
