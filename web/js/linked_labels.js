// Names beside the sockets of texts that come through a link. On the classic canvas a text of several lines has no
// label of its own, and where it is linked it is hidden: a dot would be left that says nothing.
import { app } from "../../../scripts/app.js"

const RIGHT = 14 // of the socket, as the labels of the others
const BELOW = 5

app.registerExtension({
    name: "ComfyUI-SRPO.LinkedLabels",
    beforeRegisterNodeDef(nodeType, { name }) {
        if (!name.startsWith("SRPO_")) return
        const drawn = nodeType.prototype.onDrawForeground
        nodeType.prototype.onDrawForeground = function (context, canvas) {
            drawn?.apply(this, arguments)
            if (this.flags.collapsed || canvas.low_quality) return
            context.textAlign = "left"
            context.fillStyle = LiteGraph.NODE_TEXT_COLOR
            this.inputs.forEach((slot, place) => {
                const widget = slot.link != null && this.widgets?.find(each => each.name === slot.widget?.name)
                if (!widget?.element) return
                const [x, y] = this.getInputPos(place)
                context.fillText(slot.label || slot.localized_name || slot.name, x - this.pos[0] + RIGHT, y - this.pos[1] + BELOW)
            })
        }
    },
})
