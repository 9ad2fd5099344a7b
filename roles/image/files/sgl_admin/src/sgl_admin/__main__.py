import sys

from sgl_admin.cli import main

sys.exit(main())
