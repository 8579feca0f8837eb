"""One file per layer family; importing this package registers all of them."""

from spectral_mlops.hooks.layers import attention as attention
from spectral_mlops.hooks.layers import bilinear as bilinear
from spectral_mlops.hooks.layers import convolution as convolution
from spectral_mlops.hooks.layers import embedding as embedding
from spectral_mlops.hooks.layers import linear as linear
from spectral_mlops.hooks.layers import normalization as normalization
from spectral_mlops.hooks.layers import prelu as prelu
from spectral_mlops.hooks.layers import recurrent as recurrent
