"""Raw parts of protocols: shares, keys between two, masks. Right only in the order a protocol uses them."""
