"""`python -m clinical_ser` is `clinical-ser`."""

from clinical_ser.cli import main

if __name__ == "__main__":
    main()
