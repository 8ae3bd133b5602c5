"""The history of the schema: one module a version, run by `dicom_node/migrate.py`."""
