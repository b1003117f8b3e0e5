def describe(config):
    return f"{config.model.name} of {config.model.width}"
