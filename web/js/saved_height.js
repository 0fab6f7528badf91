// Nodes keep the height that they were saved with. The front end sets it to the least, for each node with a dynamic
// combo, when it writes the combo's saved value; then the card of SRPO Train has no room.
import { app } from "../../../scripts/app.js"

app.registerExtension({
    name: "ComfyUI-SRPO.SavedHeight",
    beforeRegisterNodeDef(nodeType, { name }) {
        if (!name.startsWith("SRPO_")) return
        const configured = nodeType.prototype.onConfigure
        nodeType.prototype.onConfigure = function (saved) {
            configured?.apply(this, arguments)
            const [width, height] = saved.size ?? this.size
            this.setSize([width, Math.max(height, this.size[1])])
        }
    },
})
