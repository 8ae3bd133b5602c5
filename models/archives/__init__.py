"""Patients for training, whichever layout their archive has."""
