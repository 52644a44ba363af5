"""The site of the documentation: `make docs`.

The pages are Markdown that reads well without the site too. A link to a page, to an anchor of one or to a
file of the repository that is not there is a warning, and a warning fails the build.
"""

import memopod

project = "memopod"
author = "The memopod authors"
project_copyright = author
release = version = memopod.__version__

extensions = ["myst_parser"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # the same anchors as those of code hosts
myst_links_external_new_tab = True

html_theme = "furo"
html_title = f"memopod {version}"
html_copy_source = False
html_show_sphinx = False
