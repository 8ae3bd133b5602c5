"""Speaks DICOM and keeps the promises to the hospital: reception, jobs, RT Structure Sets, delivery."""

__version__ = "0.1.0"
