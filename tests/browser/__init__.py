"""The pack in the real graph editor. A package, so that its fixtures end with it: see conftest.py."""
