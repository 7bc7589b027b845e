import Ember from 'ember';
import config from '../config/environment';
import protocol from '../protocol';
import version from '../version';

/* Leads through the protocol's sequence and keeps what was answered on the way. */
export default Ember.Controller.extend({
  title: protocol.title,
  version,
  recordingEnvironment: config.recordingEnvironment,
  position: 0,
  answers: Ember.computed(() => Ember.A()),

  frameName: Ember.computed('position', function () {
    return protocol.sequence[this.get('position')];
  }),

  frame: Ember.computed('frameName', function () {
    return protocol.frames[this.get('frameName')];
  }),

  steps: Ember.computed('position', function () {
    const position = this.get('position');
    return protocol.sequence.map((name, index) => ({ done: index < position, current: index === position }));
  }),

  progressText: Ember.computed('position', function () {
    return `Step ${this.get('position') + 1} of ${protocol.sequence.length}`;
  }),

  actions: {
    next(answers) {
      if (Array.isArray(answers)) {
        this.get('answers').pushObjects(answers);
      }
      if (this.get('position') + 1 < protocol.sequence.length) {
        this.incrementProperty('position');
        window.scrollTo(0, 0);
      }
    },

    restart() {
      this.get('answers').clear();
      this.set('position', 0);
    }
  }
});
