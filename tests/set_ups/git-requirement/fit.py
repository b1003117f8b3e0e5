import clip

print(clip)
