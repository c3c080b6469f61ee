"""What `--help` says beyond the arguments."""

ABOUT = """Test-time adaptation of medical image segmentation in JAX.

A model trained at one hospital fails on another scanner's images; jaxtta adapts it on the unlabelled images themselves.

  jaxtta demo --out demo                        see the whole thing work on synthetic fundus photographs
  jaxtta convert weights.pth --out source       PyTorch weights of a ResUNet become a checkpoint
  jaxtta train --images I --masks M --out run   train a source model (the checkpoint is run/best)
  jaxtta adapt --source source --images I --out result
                                                masks, overlays and a table for a folder of images
  jaxtta export --source source --out programs  one update as StableHLO, to run without jaxtta
  jaxtta synthesize --out data                  folders of synthetic images to try things on
"""

SETTINGS = """options of the methods (--set key=value):
  grata  auxiliary, pseudo   entropy, consistency, reconstruction, denoising, super_resolution or rotation
         rate                quadratic, linear or fixed
  grata, tent
         optimiser           adam (default), sgd (momentum 0.99, Nesterov) or adamw
         learning_rate       1e-4 by default
         select              norm_affine (default), everything, or a regular expression over parameter paths
  progressive_bn
         tau                 1 by default; up to image tau² the source's statistics have the larger share
batch_statistics and progressive_bn need a source with batch norm; instance and group norm always use the image's own
statistics, so there choose source, tent or grata.
"""

ADAPTED = """what is written:
  OUT/masks/NAME             label masks on each image's own grid: .png, or .nii or .nii.gz with the volume's geometry
  OUT/overlays/NAME.png      contours on the image or on slices (solid: prediction; pale: reference)
  OUT/probabilities/         with --probabilities: for each class a 16-bit PNG, 65535 is 1, or a NIfTI map
  OUT/predictions.csv        a row for each image: losses, cosine, rate factor, seconds, and scores if masks are given
                             (Dice in percent; ASD, ASSD and HD95 in pixels of the image, in millimetres of a volume)
  OUT/slices/NAME.csv        of a volume with a mask: the Dice of each slice
  OUT/run.json               versions, configuration, seed, device, digest of the source, means for each domain
With several folders of images there is one folder of results for each; the state starts anew at each (see --reset).
Several modalities of a volume: one 4-D file, files NAME_0000.nii.gz, NAME_0001.nii.gz, ..., or a list with the columns
image,image2,...
"""

EXPORTED = """what is written:
  OUT/init.stablehlo         (source) -> state
  OUT/predict.stablehlo      (source, state, images) -> probabilities
  OUT/update.stablehlo       (key data, source, state, images) -> (state, probabilities, info)
  OUT/export.json            versions, configuration, digest of the source; all arguments and results in order
The programs take one image of the checkpoint's size; the values of the source stay in the checkpoint. It is an exchange
format, which JAX promises to read for six months, not an archive.
"""

TRAINED = """what is written:
  OUT/best, OUT/last         source models for adapt --source; best: the highest Dice on the images kept aside
  OUT/training.csv           a row for each epoch: losses, Dice, seconds
  OUT/resume                 the state that --resume goes on from
  OUT/run.json               versions, configuration, seed, device, which images were kept aside
"""
