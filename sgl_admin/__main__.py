import sys

from sgl_admin.commands.main import main

sys.exit(main())
