"""What the workflows that ship say: their notes, and their prompts."""

TOY_PROMPTS = """\
a red circle on grass
a yellow square on wood
a green triangle on snow
a cyan star on sand
a blue circle on sand
a purple square on grass
a red triangle on wood
a yellow star on snow
a green circle on snow
a cyan square on sand
a blue triangle on grass
a purple star on wood
a red square on wood
a yellow triangle on snow
a green star on sand
a cyan circle on grass
a blue square on grass
a purple triangle on wood
a red star on snow
a yellow circle on sand
a green square on sand
a cyan triangle on grass
a blue star on wood
a purple circle on snow"""

TOY_NOTE = """\
# Toy FLUX: a minute to begin, four to train

**Press Run.** Nothing to download, no files to put anywhere: the models in this graph come with the pack. Two CPU cores are enough. The 42 updates take three to four minutes (210 s of one CPU thread, measured).

A tiny FLUX paints 64x64 pictures of simple scenes. It was trained to make glossy *renders*; about one picture in ten looks like a *photo*. SRPO teaches it to take photos, from words alone.

**What you will see**
- On *SRPO Train*, while it runs: pictures of fixed seeds, before beside now, and the curves.
- At the right, when it is done: the same pictures, all before above, all after below, and the loss.
- In `output/loras/srpo/toy/`: a LoRA.

**What to try then**
- Run again: 42 more updates, from where it stopped.
- Change the words in *SRPO Objective* and give the run a new name in *SRPO Trainer*.
- Swap the positive and the negative words: the photos vanish.

The settings suit the toy: its reward is a small CLIP, so the words weigh more than published, pictures that already look like photos are left alone (*threshold*), the denoise branch does it alone, and ten steps make a rollout. For FLUX leave *SRPO Objective* at its defaults.

**Do not read the reward as success.** SRPO need not raise it. Look at the pictures, and at the words-gap: how much better the reward likes a picture with the positive word, such as *Natural-lighting*, than with the negative one, such as *Painting*.
"""

STEP_NOTE = """\
# One SRPO step, node by node

**Press Run**, and one update is made. **Press it again** for the next: the noise seed goes up by one each time, and the run goes on. No files are needed: the toy models come with the pack.

*SRPO Train* does just this in a loop. Here each stage is a node that you can look into and rewire.

- **0. Sample** a clean latent from noise, with the model as it is now. Stock nodes.
- **1. Inject**: put *that same noise* back, nearly all of it. Two noise levels are drawn, one for each branch.
- **2. and 3. Recover**: one step of the model, then take the known noise out. Because the noise is known, the picture comes back clean even from 95% noise. What the model got wrong is what is left.
- **4. Score**: ask the reward with a positive and with a negative word. The words go to the reward only.
- **5. Update**: pull the gradient back through the model into the adapter.
- **6. and 7.** Sample the same noise again, with the model as it is after the update, and look where it is lighter.

**What you will see**: sampled, noisy, recovered (by either branch), what the reward saw, and what the step changed. On *Train Step*, the number of the update and the words-gap. The learning rate is ten times SRPO Trainer's default, so that one step can be seen: too high for a run.

**What to try**
- *position* on *Noise-Prior Inject*: 999 is the noisy end of the window, 1 the other.
- Your own FLUX: put *Load Diffusion Model*, *Load CLIP (Dual)* and *Load VAE* in place of the toy, and another size in the empty latent.
- More pictures an update: copy the stages, and connect their rewards to *Train Step*. It grows an input for each.
"""

FLUX_PROMPTS = """\
# The first are what SRPO Train and SRPO Compare show. {a|b} stands for both: 160 prompts in all.
a portrait of a woman in a cafe by the window
an old fisherman mending a net in a harbour
a street in the rain at night, people with umbrellas
a black cat on a windowsill, curtains
a portrait of {a man with freckles|an old woman} {in a kitchen|at a bus stop}
two {friends|brothers} on a {park bench in autumn|pier at dusk}
a girl {reading|sleeping} on a {train, evening light|sofa, morning light}
a market stall with {fruit|fish}, a seller {weighing apples|counting coins}
a {cyclist|courier} waiting at a {traffic light|railway crossing}
a {chef|young cook} plating a dish in {a small restaurant|a hotel kitchen}
a {brown dog|grey horse} running {through shallow water at a beach|over a snowy field}
an empty {swimming pool|parking lot} {at dawn|in heavy rain}
a {mountain hut|chapel} {in fog, a footpath|under stars}
a {family|couple} at a {breakfast table, crumbs and cups|picnic, long grass}
a bride {adjusting her shoe|laughing with her sister} {on stone steps|in a doorway}
a {mechanic|student} under a {car, greasy hands|motorbike, a work lamp}
a {bookshop|record shop} with {narrow aisles, a ladder|dusty shelves}
a {boy|grandfather} blowing out birthday candles {in a dark room|in a garden}
a farmer {in a wheat field|beside a tractor} {before a storm|at noon}
a subway platform, {a blurred train|a sleeping man}, {blue light|yellow tiles}
an elderly couple {dancing|playing cards} in a {living room|hospital ward}
a glass of {water|red wine} on a {wooden table, hard light|marble counter, soft light}
a {nurse|cleaner} in a corridor {at the end of a shift|early in the morning}
a {football match|kite festival} on a {gravel pitch|wet meadow}
a {lighthouse|fishing boat} in {a winter storm|still water, haze}
a {bowl of soup|plate of dumplings} on {a street table, steam|a windowsill, snow outside}
a close-up of {an eye, long lashes|wrinkled hands holding bread}, {window light|sunlight through leaves}
a {tram|delivery van} on a {steep street|bridge} in fog
a violinist {tuning her instrument|asleep in a chair} {backstage|in an empty hall}
a {carpenter|potter} in a {workshop, dust in the air|shed, bare bulb}
children {jumping into a lake|building a snowman}, {seen from far away|seen from close by}
a {forest path|field of poppies} {in low sun|after rain}
a {teenager|businessman} alone in a {laundromat|fast food restaurant} at night
a {vase of tulips|basket of eggs} on a {kitchen table|church step}
a {climber|shepherd} resting on a {rock ledge, valley below|stone wall, sheep}
a {skyscraper|concrete housing block} from below, {overcast|blue hour}
a {bedroom|hotel room}, {an unmade bed|an open suitcase}, late afternoon
a {goat|rooster} on a {village road|rusty car}
a {swimmer|surfer} {drying her hair|carrying a board} on a grey beach
an {orchestra|assembly line} seen {from a balcony|between two workers}
a {desert road|frozen river} with {a lone petrol station|a wooden bridge}
a {barista|florist} {behind the counter|closing the shop}, reflections in the glass
a {newborn|puppy} asleep on {a man's chest|a knitted blanket}
"""

PROMPTS_NOTE = """\
# FLUX.1-dev LoRA (online)

Teaches your FLUX to make pictures that look like photographs, from words alone: *Natural-lighting*, *Detail* against *Painting*, *Concept art*. It makes its own pictures of the prompts, a reward model judges them, a LoRA comes out. No pictures of yours are needed.

**Five files, then Run**
1. Load Diffusion Model: your `flux1-dev.safetensors`.
2. Load CLIP (Dual): your CLIP-L and T5.
3. Load VAE: your `ae.safetensors`.
4. Load SRPO Reward: HPS v2.1, or tick *download if missing*.

The run is called *my-flux*; to begin another, give it a new name in *SRPO Trainer*.

Where each goes in `models/`, and where it is on Hugging Face:
- `diffusion_models`: flux1-dev.safetensors, 23.8\N{NO-BREAK SPACE}GB, from black-forest-labs/FLUX.1-dev
- `text_encoders`: clip_l.safetensors, 0.25\N{NO-BREAK SPACE}GB, and t5xxl_fp16.safetensors, 9.8\N{NO-BREAK SPACE}GB, both from comfyanonymous/flux_text_encoders
- `vae`: ae.safetensors, 0.34\N{NO-BREAK SPACE}GB, from black-forest-labs/FLUX.1-schnell
- `rewards`: HPS_v2.1_compressed.pt, 2\N{NO-BREAK SPACE}GB, from xswu/HPSv2

**What to expect**, at 720x720 with one picture at a time
- Memory: 14.7 GB in fp8 (counted, without a GPU), 26.4 GB in bf16 (measured on an H200). So *weight_dtype* is fp8 here, for 24 GB. Where it does not fit, ComfyUI keeps weights in RAM: slower, 2.6 to 2.9 times when 8.7 GB were used (measured on the H200).
- Time: on an H200 in bf16 1.65 s of training a prompt (measured) and 2.6 s of sampling (25 forwards of 0.105 s, as measured); 20 updates of 8 prompts are 11 minutes there, without pictures and loading (computed from these). No other card was tried.
- With the weights of the real FLUX.1-dev and HPS it has not been run yet.

**The prompts** are 160, as many as 20 updates of 8 draw: a line with {a|b} stands for each of its choices. Put yours in their place, or choose a .txt file in *SRPO Prompts*.

**Then**: the LoRA is in `output/loras/srpo/<run name>/`. Run again to go on; 10 to 20 updates were enough in the paper, at its batch of 32. Look at the pictures, not at the reward. *SRPO Compare* shows two prompts from two seeds each: if its *diversity* falls, all seeds lead to one picture.
"""

PHOTOS_NOTE = """\
# FLUX.1-dev LoRA from your photos (offline)

Steps begin from your photos in place of the model's own pictures. So nothing is sampled, which is most of the time, and the model learns from what real light looks like.

**Before**: put photos into a folder of ComfyUI's `input`, such as `input/photos`, press R, and choose it in *SRPO Photos*. A caption is in the `.txt` beside its picture, else the file's name is. 50 or more of what you want to see, in all their variety, are a beginning.

**Five files and a folder, then Run**: FLUX, its two text encoders, its VAE, the reward, and the photos. Which files and from where: in the note of *2 FLUX.1-dev LoRA (online)*.

**What to expect**, at 720x720 with one picture at a time
- Memory: as online. 14.7 GB in fp8 (counted, without a GPU), 26.4 GB in bf16 (measured on an H200).
- Time: 1.65 s a photo on an H200 in bf16 (measured); 20 updates of 8 photos are 4.4 minutes there, without pictures and loading (computed from it). Each photo is encoded once.
- With the weights of the real FLUX.1-dev and HPS it has not been run yet.

**Both at once**: *SRPO Mix* takes prompts and photos by a share.
"""

LOOK_NOTE = """\
# Look before you train

Nothing is trained here. One picture is made by your model, and you see what SRPO would see of it: whether your words tell anything apart, and at which noise levels.

**Five files, then Run**: your FLUX, its two text encoders, its VAE, and the reward. Which files, and from where: the note of *2 FLUX.1-dev LoRA (online)*.

**SRPO Recovery Sweep**, from almost pure noise at the left to little of it at the right
- *First row*: what the model is given.
- *Second*: plain one-step prediction. Towards the noisy end it is a blur, and a reward can only judge the blur.
- *Third*: recovered with the noise that is known (Direct-Align). Shaded: the levels that are trained.
- *Curves*: the reward with either word, the words-gap, the gradient. In the shaded part the words-gap should be near that of the clean picture.

**SRPO Reward Table**: what each word alone sees in the same picture, and where it looks. Its words are those of *SRPO Objective*; change them in both, or try others here first.

**What to try**
- Other words in *SRPO Objective*: those that leave the words-gap flat teach nothing.
- *SRPO Noise Levels* on *noise levels*: move the window, and see what comes into it.
- Another picture: another *Seed*. *KSampler* and *SRPO Recovery Sweep* both take it, so that the noise that is put back is the picture's own.
- A photo: Load Image and VAE Encode in place of the sampler.

**About how much**: sampling one picture of 720x720, one forward of the model and two scores with gradient for each of 9 levels; memory as of a training step, but that nothing is held for the adapter (estimated). It was never run on real FLUX.1-dev and HPS weights.
"""

Z_IMAGE_NOTE = """\
# Z-Image-Turbo LoRA (online)

Teaches Z-Image-Turbo to make pictures that look like photographs, from words alone: *Natural-lighting*, *Detail* against *Painting*, *Concept art*. Out comes a LoRA; no pictures of yours are needed.

**Four files, then Run**
1. Load Diffusion Model: `z_image_turbo_bf16.safetensors`.
2. Load CLIP: `qwen_3_4b.safetensors`, type *lumina2*.
3. Load VAE: `ae.safetensors`, the one of FLUX.1.
4. Load SRPO Reward: HPS v2.1, or tick *download if missing*.

The run is called *my-z-image*; to begin another, give it a new name in *SRPO Trainer*.

Where each goes in `models/`, and where it is on Hugging Face, as ComfyUI's own template names them:
- `diffusion_models`: z_image_turbo_bf16.safetensors, 12.3\N{NO-BREAK SPACE}GB, from Comfy-Org/z_image_turbo
- `text_encoders`: qwen_3_4b.safetensors, 8.0\N{NO-BREAK SPACE}GB, from Comfy-Org/z_image_turbo
- `vae`: ae.safetensors, 0.34\N{NO-BREAK SPACE}GB, from Comfy-Org/z_image_turbo
- `rewards`: HPS_v2.1_compressed.pt, 2\N{NO-BREAK SPACE}GB, from xswu/HPSv2

**Turbo is distilled to 8 steps**, so *SRPO Rollouts* and *SRPO Previews* take 8, by res_multistep, without cfg. Trained on other images it unlearns this, people report. Here it learns from its own 8-step pictures, and *SRPO Noise Levels* trains it where its steps begin: four of the 8 lie in the trained window. Whether that keeps the few steps was not tried: watch *curvature* on *SRPO Train*, set *many steps* to 25 on *SRPO Compare*, keep the run short. A rise of curvature or of the few-step error is a loss. The plain Z-Image (`z_image_bf16.safetensors`) wants 25 steps or more, cfg 4 and a *negative* instead.

**What to expect**, at 720x720 with one picture at a time
- Memory: 14.3 GB in bf16, 8.1 GB with *weight_dtype* fp8_e4m3fn (counted, without a GPU). Else ComfyUI keeps weights in RAM, and is slower.
- Time: not measured; half of FLUX.1-dev's weights, 8 forwards a rollout in place of 25.
- The noise that is trained is untried for this model: the part of its schedule that was published for FLUX.1-dev.
- With the weights of the real Z-Image-Turbo and HPS it has not been run yet.

**The prompts** are 160, as many as 20 updates of 8 draw: a line with {a|b} stands for each of its choices. Put yours in their place.

**Then**: the LoRA is in `output/loras/srpo/<run name>/`. Look at the pictures, not at the reward.
"""

STEP_BLUEPRINT_NOTE = """## One update of SRPO

Connect **SRPO Trainer** (both its outputs), a latent that its MODEL sampled, the very NOISE of that sampling, the prompt
and its conditioning, a VAE and a reward.

1. *Noise-Prior Inject* mixes the noise into the latent, at a level of the trained window.
2. *One-Step Recover* takes it away again in one step of the model: the noise is known, so the picture is, too.
3. *SRPO Reward* scores the picture with the positive and with the negative words, and keeps the gradient.
4. *Train Step* moves the adapter, and saves the run.

Queue it again and again; set the noise to change after each. Words and prompt are on the outside; noise levels, strengths and a second reward are in here.
"""

TRAIN_BLUEPRINT_NOTE = """## Train FLUX with SRPO

Connect MODEL, CLIP and VAE of your FLUX, and a reward from **Load SRPO Reward**.

On the outside: run name, learning rate, prompts, both words, how many updates, in what size. In here is the rest, and sockets for rollouts, noise levels, a watch, previews and an optimiser of your own.

*trained model* is the model with the LoRA; *samples* are first all before, then all after. Queue again, and the run goes on; a new run name begins anew.
"""
