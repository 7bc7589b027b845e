import Ember from 'ember';

export default Ember.Component.extend({
  chosen: null,
  undecided: Ember.computed.not('chosen'),

  cards: Ember.computed('frame', 'chosen', function () {
    return this.get('frame.choices').map((choice) => ({ choice, isChosen: choice === this.get('chosen') }));
  }),

  // Two frames of this kind in a row are one component that gets another frame: it begins undecided again.
  didReceiveAttrs() {
    this._super(...arguments);
    this.set('chosen', null);
  },

  actions: {
    choose(choice) {
      this.set('chosen', choice);
    },

    go() {
      this.get('next')([{ question: this.get('frame.title'), answer: this.get('chosen.text') }]);
    }
  }
});
