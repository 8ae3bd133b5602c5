"""`python -m dicom_node`: the same as the command `anatomynode`.

Owns nothing; it hands over to `cli.main`.
Speaks exit statuses.
Never does anything itself.
"""

from dicom_node.cli import main

if __name__ == "__main__":
    main()
