import six

import currents

print("drift of", currents.SPEED, "on", six.__version__)
